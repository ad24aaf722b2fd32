// ns-3's DSDV on point-to-point links, for tools/bench/simulator. Arguments: seconds, nodes; edges from standard input.
#include <cstdlib>
#include <iostream>

#include "ns3/core-module.h"
#include "ns3/dsdv-module.h"
#include "ns3/internet-module.h"
#include "ns3/network-module.h"
#include "ns3/point-to-point-module.h"

using namespace ns3;

int main(int argc, char** argv)
{
    if (argc != 3)
    {
        return 2;
    }
    NodeContainer nodes;
    nodes.Create(std::atoi(argv[2]));
    PointToPointHelper link;
    link.SetDeviceAttribute("DataRate", StringValue("100Mbps"));
    link.SetChannelAttribute("Delay", StringValue("1ms"));
    DsdvHelper dsdv;
    InternetStackHelper internet;
    internet.SetRoutingHelper(dsdv);
    internet.Install(nodes);
    Ipv4AddressHelper addresses("10.0.0.0", "255.255.255.252");
    unsigned a, b, links = 0;
    while (std::cin >> a >> b)
    {
        addresses.Assign(link.Install(nodes.Get(a), nodes.Get(b)));
        addresses.NewNetwork();
        links++;
    }
    Simulator::Stop(Seconds(std::atof(argv[1])));
    Simulator::Run();
    std::cout << "{\"links\": " << links << ", \"events\": " << Simulator::GetEventCount() << "}" << std::endl;
    Simulator::Destroy();
    return 0;
}
